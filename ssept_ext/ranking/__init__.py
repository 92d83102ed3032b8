"""Scoring the whole catalogue in bounded memory."""
