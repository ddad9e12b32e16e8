"""Rigid registration of point sets."""
