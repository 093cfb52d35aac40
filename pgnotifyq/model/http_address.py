"""Where a worker answers probes: `HOST:PORT`, as `--http` and `run_worker(http=...)` take it."""

from __future__ import annotations

import attrs

from pgnotifyq.model.errors import ConfigError

PORT_MAX = 65_535


@attrs.frozen
class HttpAddress:
    """A host and a port."""

    host: str
    port: int  # 0: any that is free

    @classmethod
    def read(cls, text: object) -> HttpAddress:
        """Read `127.0.0.1:9100`, `worker.internal:9100` or `[::1]:9100`.

        A port alone is refused: probes are not meant for everybody, so the caller names the host.

        Raises:
            ConfigError: it is no such address.
        """
        wanted = "write HOST:PORT, as 127.0.0.1:9100, or 0.0.0.0:9100 for all interfaces"
        if not isinstance(text, str):
            raise ConfigError(f"http {text!r} is not a text: {wanted}")
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ConfigError(f"http {text!r} is not an address: put the host in brackets, as [::1]:9100")
        if not host or not host.isascii() or not host.isprintable() or any(c in host for c in " /[]"):
            raise ConfigError(f"http {text!r} names no host: {wanted}")
        if not (port.isascii() and port.isdigit()) or len(port) > len(str(PORT_MAX)) or int(port) > PORT_MAX:
            raise ConfigError(f"http {text!r} names no port: {wanted}")
        return cls(host, int(port))

    def nth(self, index: int) -> HttpAddress:
        """Return the address of the process `index` of several: the port and those that follow it.

        Args:
            index: 0 for the first process.

        Raises:
            ConfigError: there are not so many ports.
        """
        if self.port == 0:
            return self
        if self.port + index > PORT_MAX:
            raise ConfigError(f"http {self}: process {index + 1} would have port {self.port + index}; there are {PORT_MAX}")
        return HttpAddress(self.host, self.port + index)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
