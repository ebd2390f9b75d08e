"""What methods measure on calibration data: sensitivities, curvature, moments of responses."""
