//! What a delta holds, and how those that are ours apply.
