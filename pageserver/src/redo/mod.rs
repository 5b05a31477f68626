//! A chain of versions becomes a page: walredo threads and the engines behind them.
