"""Batch norms and classifiers of class tokens under the names that most releases share."""

from examples.towers.releases.tensors import Release, State

# Letter of a modality in released names -> name of our feature.
FEATURES = {"r": "G_RGB", "n": "G_NI", "t": "G_TI"}


def class_token_heads(release: Release) -> tuple[str, dict[str, State]]:
    """Take the heads of class tokens: one for all modalities joined, or one per modality.

    Returns:
        The supervision of these heads, "joined" or "single", and the heads by feature.
    """
    if release.has("classifier."):
        return "joined", {"G": release.head("bottleneck", "classifier")}
    heads = {
        feature: release.head(f"bottleneck_{letter}", f"classifier_{letter}") for letter, feature in FEATURES.items()
    }
    return "single", heads
