"""Scores of proxies and estimators."""
