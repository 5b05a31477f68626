//! To come in the next commit.
