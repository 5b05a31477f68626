//! What the records of each resource manager say, as far as a page server must know without redo.
