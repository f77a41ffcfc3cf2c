"""Cleaning of maps: areas, sieve, majority, calibrated confidence."""
