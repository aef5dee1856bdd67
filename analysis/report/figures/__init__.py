"""The figures of the report: findings or tables in, Plotly figures out."""
