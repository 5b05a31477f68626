//! Arithmetic of CLOG, multixact and commit timestamp pages.
