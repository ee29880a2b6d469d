"""The report on a dataset: figures and the page."""
