"""The stream protocol: documents taken up one after another, questions asked at the end and on the way."""
