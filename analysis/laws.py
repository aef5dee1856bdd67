"""The functional forms of scaling laws."""
