"""What an evaluation found: results, metrics, summary, page. Made from rows alone."""
