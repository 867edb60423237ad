"""Generators: a local checkpoint or an endpoint that answers prompts, behind the protocol in `protocol`."""
