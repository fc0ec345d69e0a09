"""SQLModel: SQLAlchemy's guards see what its sessions do, and name its own methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Field, Session, SQLModel, create_engine, select

import asyncsafe

from ..running import on_loop, refused


class Hero(SQLModel, table=True):
    __tablename__ = "sqlmodel_heroes"
    id: int | None = Field(default=None, primary_key=True)
    name: str


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    engine = create_engine(f"sqlite:///{tmp_path / 'heroes.db'}")
    SQLModel.metadata.create_all(engine, tables=[Hero.__table__])  # type: ignore[attr-defined]
    with Session(engine) as session:
        session.add(Hero(name="Deadpond"))
        session.commit()
        yield session
    engine.dispose()


@pytest.mark.usefixtures("guarded")
class TestGuarded:
    def test_exec(self, session: Session) -> None:
        violation = refused(lambda: session.exec(select(Hero)))
        assert violation.operation == "sqlalchemy.Session.execute"
        assert violation.subject == "Session.exec(select(Hero)) was called"
        assert violation.hint == "await session.exec(...), with an AsyncSession"
        assert violation.statement is not None
        assert violation.statement.startswith("SELECT sqlmodel_heroes.id")

    def test_get_and_commit(self, session: Session) -> None:
        assert refused(lambda: session.get(Hero, 1)).subject == "Session.get(Hero, ...) was called"
        session.add(Hero(name="Rusty-Man"))
        assert refused(session.commit).subject == "Session.commit() was called"
        session.commit()
        assert [hero.name for hero in session.exec(select(Hero))] == ["Deadpond", "Rusty-Man"]

    def test_create_all(self, session: Session) -> None:
        engine: Any = session.get_bind()
        violation = refused(lambda: SQLModel.metadata.create_all(engine))
        assert violation.subject == "MetaData.create_all(engine) was called"

    def test_an_expired_attribute(self, session: Session) -> None:
        hero = session.exec(select(Hero)).one()
        session.commit()
        assert refused(lambda: hero.name).subject == "Hero.name was loaded"
        assert hero.name == "Deadpond"

    def test_models_alone_do_no_io(self, heard: list[asyncsafe.Violation]) -> None:
        hero = on_loop(lambda: Hero.model_validate({"name": "Deadpond"}).model_dump())
        assert hero == {"id": None, "name": "Deadpond"}
        assert heard == []
