"""One teacher's entries in the teacher cache: found under the weights, the tokens, and how it was asked."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pyarrow as pa
from numpy.typing import ArrayLike

from configs.teachers import EndpointTeacher, LocalTeacher
from runtime.blas import load_blas
from runtime.teacher_cache import Setting, TeacherCache, entry_key


class TeacherEntries:
    """The teacher cache as one teacher uses it; with a limit of 0 it finds nothing and keeps nothing."""

    def __init__(
        self, teacher: LocalTeacher | EndpointTeacher, limit_gb: float, *, exact: bool
    ) -> None:
        """Raises BadInput for a cache folder that cannot be written."""
        self._cache = TeacherCache(limit_bytes=int(limit_gb * 1e9)) if limit_gb else None
        self._digest = _digest(teacher) if self._cache else ""
        self._exact = exact

    @property
    def kept(self) -> bool:
        """Whether anything is kept: without a cache no key has to be made."""
        return self._cache is not None

    def key(self, tokens: ArrayLike, asked: Mapping[str, Setting]) -> str:
        """Returns the key of what was asked about these tokens; the backend decides the last bits too."""
        return entry_key(self._digest, tokens, {**asked, "backend": load_blas(self._exact)})

    def get(self, key: str) -> pa.RecordBatch | None:
        """Returns the entry, or None if there is none."""
        return self._cache.get(key) if self._cache is not None else None

    def put(self, key: str, batch: pa.RecordBatch) -> None:
        """Keeps an entry."""
        if self._cache is not None:
            self._cache.put(key, batch)


def _digest(teacher: LocalTeacher | EndpointTeacher) -> str:
    """Returns a digest of every byte of the weights: the cache outlives the checkpoint in that folder."""
    if isinstance(teacher, EndpointTeacher):
        told = f"{teacher.url}\0{teacher.model}\0{teacher.system}"
        return hashlib.sha256(told.encode()).hexdigest()
    out = hashlib.sha256(f"{teacher.quantize_bits}\0{teacher.dtype}\0".encode())
    out.update(msgspec.json.encode([teacher.chat_template, teacher.system], order="sorted"))
    folder = Path(teacher.path)
    kinds = ("*.safetensors", "*.json", "*.jinja")
    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        with path.open("rb") as file:
            out.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return out.hexdigest()
