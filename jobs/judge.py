"""How good a generator's images are, measured by all workers of a run together."""

from models import classifier, digits, gan, parallel, quality


class Judge:
    """Measures the quality of samples against the test images, which are looked at once."""

    def __init__(self, seed: int, latent_dim: int, test: digits.Images):
        self.z = gan.sample_latents(seed, latent_dim)
        self.images = test.images
        self.eye = classifier.load(test.images.device)
        self.reference: quality.Reference | None = None

    def measure(self, generator: gan.Generator, rank: int) -> dict[str, float]:
        """Returns the measures on the first worker, nothing on others: they draw and look only."""
        mine = parallel.share(len(self.z))
        seen = quality.look(gan.draw(generator, self.z[mine]), self.eye)
        whole = quality.Seen(*(part.new_zeros(len(self.z), part.shape[1]) for part in seen))
        for together, part in zip(whole, seen, strict=True):
            together[mine] = part
        parallel.add_up(whole)
        if rank > 0:
            return {}
        if self.reference is None:
            self.reference = quality.Reference.of(digits.scaled(self.images), self.eye)
        return quality.measure(whole, self.reference)
