"""Deblending of alert streams: Kafka in, Kafka out."""
