"""The workspace of a surrogate: files that are copied as they are, and the fitted models behind them."""
