"""Readers of events under raw ids: delimited text, lines of records, published data sets."""
