"""Calibration of generated answers, the same for every kind of report that has any."""
