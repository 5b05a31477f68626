//! The libpq server: commands for people, pagestream for computes.
