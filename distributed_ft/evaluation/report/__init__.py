"""The report of a run: collected from the run directory, judged, and written as HTML, Markdown and JSON."""
