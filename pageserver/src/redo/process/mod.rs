//! A stock PostgreSQL as redo engine, in a process of its own.
