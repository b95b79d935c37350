"""Which packages the data set is made of, each pinned by version and digest. Nothing here is fetched.

SmolLM2 was published on 2024-10-31: what was first released in 2025 or 2026 it cannot have read. `first`
is the day of a package's first upload as the index told it; a build asks the index again.
"""

from dataclasses import dataclass

MODEL_PUBLISHED = "2024-10-31"


@dataclass(frozen=True, slots=True)
class Release:
    """One source archive: `sha256` is that of the file, `first` the day of the package's first upload."""

    package: str
    version: str
    uploaded: str
    sha256: str
    licence: str  # an SPDX expression, compared with what the archive says of itself
    first: str
    about: str

    @property
    def name(self) -> str:
        """What files and documents call it."""
        return f"{self.package}-{self.version}"


@dataclass(frozen=True, slots=True)
class Older:
    """A package the model may have read, in a version before its training and in one after it."""

    before: Release
    after: Release


def _fresh(package: str, about: str, licence: str, first: str, pin: str) -> Release:
    version, uploaded, sha256 = pin.split()
    return Release(package, version, uploaded, sha256, licence, first, about)


def _older(package: str, about: str, licence: str, first: str, before: str, after: str) -> Older:
    return Older(*(_fresh(package, about, licence, first, pin) for pin in (before, after)))


FRESH = (
    _fresh(
        "a2a-sdk",
        "protocol between agents",
        "Apache-2.0",
        "2025-05-15",
        "1.3.0 2026-10-27 73694717de50f36aaebd57b8fc6636ecaa825eb0d4437984fa2cd17f703a6808",
    ),
    _fresh(
        "claude-agent-sdk",
        "agents",
        "MIT",
        "2025-09-28",
        "0.2.189 2026-11-25 1d859a142ee6cd97aef972215ed7ab5c09f623018194a6577c7dafbbfa481216",
    ),
    _fresh(
        "deepagents",
        "agents",
        "MIT",
        "2025-07-29",
        "0.7.32 2026-10-23 f4154281b04a499015e48c24edf11f59f833fbabd3d87e0898832e8db954aac4",
    ),
    _fresh(
        "django-modern-rest",
        "web",
        "MIT",
        "2025-10-09",
        "0.16.0 2026-10-01 c16cd35cad4ee19ecc9336be086aa61b51a13ed715a03063fa36be143829b470",
    ),
    _fresh(
        "google-adk",
        "agents",
        "Apache-2.0",
        "2025-03-17",
        "2.13.0 2026-10-23 bc2389c9d41bfadd9f0c87d6bfd8d5c7eaf1c449e8906079600b8f3752ddaa88",
    ),
    _fresh(
        "harbor",
        "command line, evaluation",
        "Apache-2.0",
        "2025-11-02",
        "0.26.0 2026-11-13 ec75294b7e2a9f9c9419ff9e18033f4e587a8aa312a79e93a5958cf17ef746f8",
    ),
    _fresh(
        "langextract",
        "text to data",
        "Apache-2.0",
        "2025-07-22",
        "1.7.1 2026-10-08 c2a976378a718ec4be448629b2b44d46e2e29b334ce0d75e99cd07aaedf0a47c",
    ),
    _fresh(
        "mini-swe-agent",
        "command line",
        "MIT",
        "2025-07-23",
        "2.4.6 2026-07-23 0532c8193a763409fa52bb2b5a5d7ac9052dcb1c2cae43945b14b1b7f6ba869a",
    ),
    _fresh(
        "openai-agents",
        "agents, much documentation",
        "MIT",
        "2025-03-04",
        "0.24.0 2026-10-15 4b4b285f4fed81fdf1b4ac426a9101658d9cd29b4fb1aaeee18f639b77e704e3",
    ),
    _fresh(
        "prefab-ui",
        "user interfaces, much documentation",
        "Apache-2.0",
        "2026-02-19",
        "0.21.1 2026-10-26 26e84e0ba195845edd1f36ff88a2ef3d76e9d79044518fa6636a5862e0a1bac5",
    ),
    _fresh(
        "querychat",
        "questions to data frames",
        "MIT",
        "2025-05-24",
        "0.9.0 2026-09-13 bffefcb76801bd6c231310644fb08de80d608c6f7ed92bd86c1a1995526946da",
    ),
    _fresh(
        "strands-agents",
        "agents",
        "Apache-2.0",
        "2025-05-14",
        "1.62.0 2026-10-21 8732c87f9c1ceb6ef4c5c4bd6d96b4cdf1bbfde095f1537ec2ac6fddb8d5a066",
    ),
    _fresh(
        "tdom",
        "HTML templates",
        "MIT",
        "2025-05-01",
        "0.1.20 2026-09-06 23eceb3def3e25081207406265f61c1485bb39e7ccf1e41d3a0fff182e960ddd",
    ),
    _fresh(
        "tinker-cookbook",
        "training of models",
        "Apache-2.0",
        "2025-08-25",
        "0.6.1 2026-11-06 edf66f0a4b2c3b375b9328a4d748a3dae104170bb2bcde0d156f0b22de7a1aa3",
    ),
)

OLDER = (
    _older(
        "huggingface-hub",
        "model hub",
        "Apache-2.0",
        "2020-12-23",
        "0.20.3 2024-01-22 94e7f8e074475fbc67d6a71957b678e1b4a74ff1b64a644fd6cbb83da962d05d",
        "2.4.0 2026-10-29 13a6158b9e3393d9d3f248ce99074d50c2a0a1449fb9d8e2f710751e2084c188",
    ),
    _older(
        "polars",
        "data frames",
        "MIT",
        "2021-03-15",
        "0.20.6 2024-01-26 b53553308bc7e2b4f841b18f1949b61ed7f2cf155c5c64712298efa5af67a997",
        "2.1.0 2026-10-25 9eee488d6e10773c028753dfc8dac647fd60a708108dcb818a733e85d33df253",
    ),
    _older(
        "sentence-transformers",
        "embeddings",
        "Apache-2.0",
        "2019-07-25",
        "2.3.1 2024-01-30 d589d85a464f45338cdbdf99ea715f8068e1fb01c582e0bcdbf60bcf3eade6d0",
        "6.2.0 2026-10-21 1e3cd8796ab7bcad4cfa2f51e2083d8b37b15d6b68e6fa6b91a147c67380574d",
    ),
    _older(
        "textual",
        "terminal user interfaces",
        "MIT",
        "2021-06-03",
        "0.47.1 2024-01-05 4b82e317884bb1092f693f474c319ceb068b5a0b128b121f1aa53a2d48b4b80c",
        "8.2.8 2026-06-30 3f106a9fbc73e39dd266c9712432087de78a6d644084c7c241d6a25c3169115b",
    ),
)
