"""Alert streams: Kafka in, Kafka out."""
