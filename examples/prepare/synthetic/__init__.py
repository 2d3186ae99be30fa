"""The synthetic set: identities, bodies, scenes and sensors, rendered to folders."""
