"""Names and layouts of published networks' weights."""
