"""Readers of historical logs, the marketplace simulator, the player, the backtest and its reports."""
