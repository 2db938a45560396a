"""Books as files and databases, apart from any house: where one is, and how it gets elsewhere.

Promises: a copy says of itself that it is one and opens closed; what is brought in is proven, or
nothing is brought in; nothing here serves. Never: a decision about money; a call to a mint; a
password in what is told.
"""

from farebox.books.moving import Carried, Exported, backup, export_book, import_book, take_back
from farebox.books.places import (
    RECORDS,
    book_place,
    migrate,
    open_audit,
    open_store,
    require_schema,
)

__all__ = [
    "RECORDS",
    "Carried",
    "Exported",
    "backup",
    "book_place",
    "export_book",
    "import_book",
    "migrate",
    "open_audit",
    "open_store",
    "require_schema",
    "take_back",
]
