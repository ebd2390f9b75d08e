"""Measurements on calibration data: sensitivities, curvature, moments of responses."""
