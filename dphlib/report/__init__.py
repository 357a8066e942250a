"""The HTML report, and the notebooks run by papermill."""
