"""The server's processes: started, waited for, warmed up, and ended with everything that they started."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import NoReturn, Self

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_requests import COMPLETIONS
from lora_eval.engines.vllm_process import last_error
from lora_eval.errors import InputError, ServerError
from lora_eval.models import load_tokenizer
from lora_eval.protocols import Progress
from lora_eval.serve.start import Startable
from lora_eval.watchdog import Watchdog, make_folder, temporary_files

_WORD = "Once upon a time"


class LocalServer:
    """vLLM, or `transformers serve`, on this machine, at `url`; what it writes goes to `log`. Used as a
    context: afterwards none of its processes is left.

    Raises (on entering):
        InputError, ModelError: what is to be served, or the port, cannot be used.
        MissingExtraError: that server is not installed.
        ServerError: it ends instead of answering, or is not ready after `timeout` seconds.
    """

    def __init__(
        self,
        serving: Startable,
        progress: Progress,
        *,
        port: int = 0,
        timeout: float = 900,
        log: Path | None = None,
    ) -> None:
        self.serving = serving
        self._progress = progress
        self._port = port
        self._timeout = timeout
        self._kept = log is not None
        self.log = log or Path(tempfile.mkstemp(prefix="lora-eval-serve-", suffix=".log")[1])
        self._watchdog: Watchdog | None = None

    @property
    def url(self) -> str:
        """Where clients ask, with `/v1`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.serving.host, self.serving.host)
        return f"http://{host}:{self._port}/v1"

    @property
    def models(self) -> tuple[str, ...]:
        """The served names, the base first."""
        return self.serving.names

    def __enter__(self) -> Self:
        try:
            self.serving.check()
            self._port = free_port(self.serving.host, self._port)
            self._start()
            self._wait()
            self._warm_up()
        except BaseException as error:
            self._kept |= isinstance(error, ServerError)  # which names the log
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if not self._kept:
            self.log.unlink(missing_ok=True)

    def close(self) -> None:
        """End the server and everything that it started."""
        if self._watchdog is not None:
            self._watchdog.close()

    def wait(self) -> NoReturn:
        """Watch over the server until this process is interrupted.

        Raises:
            ServerError: the server has ended by itself.
        """
        while True:
            self._check()
            time.sleep(0.2)

    def _start(self) -> None:
        folder = make_folder()
        try:
            start = self.serving.start(self._port, folder)
        except BaseException:
            shutil.rmtree(folder)
            raise
        with self.log.open("ab") as log:
            self._watchdog = Watchdog(
                folder, start.arguments, env=start.environment | temporary_files(folder), cwd=start.folder,
                stdout=log, stderr=log,
            )  # fmt: skip

    def _wait(self) -> None:
        started = time.monotonic()
        with ServerClient(self.url, timeout=5, tries=1) as client:
            while True:
                self._check()
                with contextlib.suppress(ServerError, Refused):
                    client.get(self.serving.ready)
                    return
                waited = time.monotonic() - started
                if waited > self._timeout:
                    raise ServerError(
                        f"{self.serving.title} is not ready after {waited:.0f} seconds; its log is {self.log}"
                    )
                self._progress(f"starting {self.serving.title}", int(waited), int(self._timeout))
                time.sleep(0.5)

    def _warm_up(self) -> None:
        """Ask every model once: the first request for an adapter took 32 seconds on a CPU."""
        ids = load_tokenizer(self.serving.model).encode(_WORD, add_special_tokens=False)
        with ServerClient(self.url) as client:
            for place, model in enumerate(self.models):
                self._progress(f"warming up {model}", place, len(self.models))
                try:
                    client.post(COMPLETIONS, self.serving.first_request(model, ids, _WORD))
                except Refused as error:
                    raise ServerError(
                        f"{model}: the server answers its first request with {error}"
                    ) from error

    def _check(self) -> None:
        if self._watchdog is None or self._watchdog.process.poll() is not None:
            said = last_error(self.log) or "it says nothing of an error"
            self._kept = True
            raise ServerError(f"{self.serving.title} has ended: {said}; its log is {self.log}")


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        InputError: it is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port}: cannot be served on ({error.strerror}); give another --port"
            ) from error
        return int(found.getsockname()[1])
