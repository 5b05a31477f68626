//! What tools and tests use to talk to a page server.
