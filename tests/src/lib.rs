//! Harness of the tests: real PostgreSQL servers and a real page server, started and ended by the test.
