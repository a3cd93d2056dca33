"""How good lists are: backtest, counting methods to compare with, search of settings, plots."""
