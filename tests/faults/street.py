"""Several `farebox serve` on one book in PostgreSQL, and the callers who come to any of them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from farebox.books import RECORDS
from farebox.stores.audit import BookReader
from farebox.stores.postgres.audit import PostgresAuditReader
from tests.acceptance.world import farebox
from tests.faults.served import House, Money


class Street(House):
    """Houses on one book. A caller comes to any that is open, and next time to another."""

    def __init__(
        self,
        folder: Path,
        flags: tuple[str, ...],
        money: Money,
        chance: random.Random,
        dsn: str,
        servers: int = 2,
    ) -> None:
        super().__init__(folder, flags, money)
        self.chance = chance
        self.open: list[House] = []
        self._dsn = dsn
        self._servers = servers

    def open_all(self) -> None:
        """The first makes the root key, which all have."""
        for number in range(self._servers):
            house = House(self.folder / str(number), self.flags, self.money)
            house.folder.mkdir()
            if number == 0:
                made = farebox(
                    "init", *self.flags, cwd=house.folder, env={"FAREBOX_DATABASE": self._dsn}
                )
                assert made.code == 0, made.error
            else:
                (house.folder / "data").mkdir(mode=0o700)
                key = Path("data") / "root.key"
                shutil.copy2(self.folder / "0" / key, house.folder / key)
            house.start()
            self.open.append(house)

    @property
    def url(self) -> str:
        return self.chance.choice(self.open).url

    def kill_one(self) -> None:
        """One less from now on."""
        house = self.open.pop(self.chance.randrange(len(self.open)))
        house.kill()

    def look(self) -> House:
        """One that is open, as the operator asks it."""
        house = self.open[0]
        house.tokens = self.tokens
        house.reader = self.reader  # type: ignore[method-assign]
        return house

    def reader(self) -> BookReader:
        return PostgresAuditReader(self._dsn, RECORDS)

    def stop(self) -> None:
        for house in self.open:
            house.stop()
