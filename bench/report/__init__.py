"""What a run says: `results` compares, `table` and `chart` show, `document` writes docs/performance.md."""
