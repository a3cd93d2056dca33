"""The edges of nextclick: clicks in from Kafka or the embedded log, lists out to Redis."""
