"""use_local((object, attribute)): a threading.local, with a state for each owner instead."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import re
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import uvloop
from sqlalchemy.util import greenlet_spawn

import asyncsafe
from asyncsafe.asgi import ConnectionMiddleware
from asyncsafe.thread_locals import SwappedLocal, local_base

from .running import python


class Registry:
    """What has a `threading.local` in an attribute."""

    def __init__(self, local: Any) -> None:
        self.local = local


def swapped(local: Any, *args: Any, **kwargs: Any) -> Any:
    """What stands in for this local now."""
    registry = Registry(local)
    asyncsafe.use_local((registry, "local"), *args, **kwargs)
    return registry.local


def in_new_thread(call: Callable[[], Any]) -> Any:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


def in_new_task(call: Callable[[], Any]) -> Any:
    async def task() -> Any:
        return call()

    return asyncio.run(task())


class Counter(threading.local):
    """With much of what a class can have."""

    unit = "pieces"

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        super().__init__()
        self.start = start
        self.step = step
        self.count = start

    def add(self) -> int:
        self.count += self.step
        return self.count

    @property
    def added(self) -> int:
        return self.count - self.start

    @added.setter
    def added(self, number: int) -> None:
        self.count = self.start + number

    @classmethod
    def called(cls) -> str:
        return cls.__name__

    @staticmethod
    def constant() -> int:
        return 42


class Careful(Counter):
    """Whose super() has no arguments."""

    def __init__(self, start: int = 0) -> None:
        super().__init__(start, step=10)
        self.calls = 0

    def add(self) -> int:
        self.calls += 1
        return super().add()


class TestOwners:
    """Whose state it is."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
    def test_each_task_has_its_own(self, run: Callable[[Any], Any]) -> None:
        local = swapped(threading.local())

        async def task(number: int, barrier: asyncio.Barrier) -> int:
            local.number = number
            await barrier.wait()
            return int(local.number)

        async def main() -> list[int]:
            barrier = asyncio.Barrier(3)
            return await asyncio.gather(*(task(n, barrier) for n in range(3)))

        assert run(main()) == [0, 1, 2]

    def test_each_task_of_trio_has_its_own(self) -> None:
        local = swapped(threading.local())
        seen: list[int] = []

        async def task(number: int, mine: trio.Event, others: trio.Event) -> None:
            local.number = number
            mine.set()
            await others.wait()
            seen.append(local.number)

        async def main() -> None:
            local.number = 0
            one, other = trio.Event(), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task, 1, one, other)
                nursery.start_soon(task, 2, other, one)
            assert local.number == 0

        trio.run(main)
        assert sorted(seen) == [1, 2]

    def test_a_greenlet_that_a_task_runs_has_the_tasks(self) -> None:
        """SQLAlchemy's greenlet_spawn, below which the loop is the caller's."""
        local = swapped(threading.local())

        async def task() -> bool:
            local.number = 1
            return await greenlet_spawn(hasattr, local, "number")

        assert asyncio.run(task())

    def test_a_child_task_starts_afresh(self) -> None:
        local = swapped(threading.local())

        async def child() -> bool:
            inherited = hasattr(local, "number")
            local.number = 2
            return inherited

        async def parent() -> tuple[bool, int]:
            local.number = 1
            return await asyncio.create_task(child()), local.number

        assert asyncio.run(parent()) == (False, 1)

    def test_a_coroutine_that_is_awaited_is_its_callers(self) -> None:
        local = swapped(threading.local())

        async def awaited() -> int:
            return int(local.number)

        async def task() -> int:
            local.number = 1
            return await awaited()

        assert asyncio.run(task()) == 1

    def test_nothing_is_inherited_from_the_main_thread(self) -> None:
        local = swapped(threading.local())
        local.number = 1
        assert not in_new_task(lambda: hasattr(local, "number"))
        assert local.number == 1

    def test_each_thread_has_its_own(self) -> None:
        local = swapped(threading.local())
        local.number = 1
        assert not in_new_thread(lambda: hasattr(local, "number"))
        assert in_new_thread(lambda: (setattr(local, "number", 2), local.number)[1]) == 2
        assert local.number == 1

    def test_a_thread_that_works_for_a_task_has_the_tasks(self) -> None:
        local = swapped(threading.local())

        @asyncsafe.database_sync_to_async
        def in_thread() -> Any:
            return local.number

        async def task() -> Any:
            local.number = 1
            return await in_thread()

        assert asyncio.run(task()) == 1

    def test_each_request_has_its_own(self) -> None:
        local = swapped(threading.local())
        seen: list[bool] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(hasattr(local, "number"))
            local.number = 1

            def work() -> None:
                seen.append(local.number == 1)

            await asyncsafe.database_sync_to_async(work)()

        served = ConnectionMiddleware(app)

        async def main() -> None:
            local.number = 0
            for _ in range(2):
                await served({"type": "http", "method": "GET", "path": "/"}, None, None)  # type: ignore[arg-type]
            assert local.number == 0

        asyncio.run(main())
        assert seen == [False, True, False, True]

    def test_two_locals_do_not_mix(self) -> None:
        one, other = swapped(threading.local()), swapped(threading.local())
        one.number = 1
        assert not hasattr(other, "number")

    def test_what_a_task_held_is_freed_when_it_ends(self) -> None:
        local = swapped(threading.local())

        class Held:
            pass

        async def task() -> weakref.ref[Any]:
            local.held = Held()
            return weakref.ref(local.held)

        async def main() -> None:
            ended = asyncio.create_task(task())
            held = await ended
            await asyncio.sleep(0)  # the loop calls what waits for the task's end
            gc.collect()
            assert held() is None
            assert ended.done()  # and it is not that the task was freed

        asyncio.run(main())

    @pytest.mark.parametrize("end", ["exception", "cancellation"])
    def test_however_the_task_ends(self, end: str) -> None:
        local = swapped(threading.local())

        class Held:
            pass

        async def task(told: list[Any]) -> None:
            local.held = Held()
            told.append(weakref.ref(local.held))
            if end == "exception":
                raise ValueError
            await asyncio.Event().wait()

        async def main() -> None:
            told: list[Any] = []
            ended = asyncio.create_task(task(told))
            await asyncio.sleep(0)
            ended.cancel()
            await asyncio.wait([ended])
            gc.collect()
            assert told[0]() is None

        asyncio.run(main())

    def test_what_a_thread_held_is_freed_when_it_ends(self) -> None:
        local = swapped(threading.local())

        class Held:
            pass

        def thread() -> Any:
            local.held = Held()
            return weakref.ref(local.held)

        held = in_new_thread(thread)
        gc.collect()
        assert held() is None

    def test_a_local_that_nobody_has_any_more_is_freed_with_its_owners(self) -> None:
        async def task() -> weakref.ref[Any]:
            registry = Registry(threading.local())
            asyncsafe.use_local((registry, "local"))
            registry.local.number = 1
            return weakref.ref(registry.local)

        stand_in = asyncio.run(task())
        gc.collect()
        assert stand_in() is None


class TestSemantics:
    """What a `threading.local` does, its stand-in does, too."""

    def test_attributes(self) -> None:
        local = swapped(threading.local())
        local.number = 1
        assert local.number == 1
        assert hasattr(local, "number")
        assert "number" in dir(local)
        del local.number
        assert not hasattr(local, "number")
        with pytest.raises(AttributeError, match="number"):
            local.number
        with pytest.raises(AttributeError, match="number"):
            del local.number
        assert getattr(local, "number", 2) == 2

    def test_its_dict(self) -> None:
        local = swapped(threading.local())
        local.__dict__["one"] = 1
        vars(local).update(two=2)
        assert (local.one, local.two) == (1, 2)
        assert vars(local) == {"one": 1, "two": 2}
        assert in_new_task(lambda: vars(local)) == {}

    @pytest.mark.parametrize("kind", [threading.local, Counter, Careful])
    def test_isinstance(self, kind: type[Any]) -> None:
        local = swapped(kind())
        assert isinstance(local, kind)
        assert isinstance(local, threading.local)
        assert local.__class__ is kind

    def test_isinstance_makes_no_state(self) -> None:
        made: list[str] = []

        class Noted(threading.local):
            def __init__(self) -> None:
                made.append(threading.current_thread().name)

        local = swapped(Noted())
        made.clear()
        assert in_new_thread(lambda: isinstance(local, Noted))
        assert made == []

    def test_init_is_called_once_for_each_owner(self) -> None:
        made: list[str] = []

        class Noted(threading.local):
            def __init__(self, name: str) -> None:
                self.name = name
                made.append(threading.current_thread().name)

        original = Noted("pool")
        made.clear()
        local = swapped(original, "pool")
        assert (local.name, local.name) == ("pool", "pool")
        assert len(made) == 1
        for _ in range(2):
            in_new_task(lambda: (local.name, local.name))
        in_new_thread(lambda: (local.name, local.name))
        assert len(made) == 4

    def test_init_gets_the_arguments(self) -> None:
        local = swapped(Counter(5, step=2), 5, step=2)
        assert local.add() == 7
        assert in_new_task(lambda: (local.add(), local.add(), local.added)) == (7, 9, 4)
        assert local.added == 2

    def test_what_init_raises_is_raised_where_it_is_used_and_tried_anew(self) -> None:
        fails = False

        class Failing(threading.local):
            def __init__(self) -> None:
                if fails:
                    raise OSError("no server")
                self.works = True

        local = swapped(Failing())

        async def task() -> bool:
            nonlocal fails
            fails = True
            with pytest.raises(OSError, match="no server"):
                local.works
            fails = False
            return bool(local.works)

        assert asyncio.run(task())

    def test_super_without_arguments(self) -> None:
        local = swapped(Careful())
        assert (local.add(), local.add()) == (10, 20)
        assert in_new_task(lambda: (local.add(), local.calls)) == (10, 1)
        assert local.calls == 2

    def test_methods_properties_and_what_is_the_classes(self) -> None:
        local = swapped(Counter())
        local.added = 3
        assert (local.count, local.added) == (3, 3)
        assert local.called() == "Counter"
        assert local.constant() == 42
        assert local.unit == "pieces"
        local.unit = "pounds"
        assert in_new_task(lambda: local.unit) == "pieces"

    def test_slots_are_everybodys(self) -> None:
        """As Python's documentation of _threading_local has it."""

        class Slotted(threading.local):
            __slots__ = ("shared",)

        original = Slotted()
        original.shared = 1
        original.number = 1
        del original.number
        local = swapped(original)
        assert local.shared == 1
        assert in_new_thread(lambda: local.shared) == 1

        def change() -> None:
            local.shared = 2
            local.number = 2

        in_new_task(change)
        assert local.shared == 2
        assert not hasattr(local, "number")
        del local.shared
        assert not in_new_task(lambda: hasattr(local, "shared"))

    def test_a_getattr_of_its_own(self) -> None:
        class Default(threading.local):
            def __getattr__(self, name: str) -> str:
                if name.startswith("_"):
                    raise AttributeError(name)
                return f"no {name}"

        local = swapped(Default())
        local.one = 1
        assert (local.one, local.two) == (1, "no two")
        assert in_new_task(lambda: local.one) == "no one"

    def test_special_methods(self) -> None:
        class Stack(threading.local):
            def __init__(self) -> None:
                self.items: list[Any] = []

            def __len__(self) -> int:
                return len(self.items)

            def __getitem__(self, index: int) -> Any:
                return self.items[index]

            def __call__(self, item: Any) -> None:
                self.items.append(item)

            def __enter__(self) -> Stack:
                self.items.append("entered")
                return self

            def __exit__(self, *exc_info: object) -> None:
                self.items.pop()

            def __iadd__(self, item: Any) -> Stack:
                self.items.append(item)
                return self

            def __repr__(self) -> str:
                return f"<{self.items}>"

        registry = Registry(Stack())
        asyncsafe.use_local((registry, "local"))
        local = registry.local

        async def task() -> None:
            local(1)
            assert (len(local), local[0], list(local), repr(local)) == (1, 1, [1], "<[1]>")
            with local as same:
                assert same is local
                assert local[-1] == "entered"
            registry.local += 2
            assert registry.local is local
            assert list(local) == [1, 2]

        asyncio.run(task())
        assert len(local) == 0
        assert not local

    def test_a_plain_one_is_true_and_hashable(self) -> None:
        local = swapped(threading.local())
        assert local
        assert {local: 1}[local] == 1
        assert local == local

    def test_names_that_only_the_original_class_mangles(self) -> None:
        class Private(threading.local):
            def __init__(self) -> None:
                self.__secret = 1

            def tell(self) -> int:
                return self.__secret

        local = swapped(Private())
        assert local.tell() == 1
        assert in_new_task(local.tell) == 1


class TestHolders:
    """Where the attribute may be."""

    def test_a_module(self) -> None:
        module = types.ModuleType("settings")
        module.local = threading.local()  # type: ignore[attr-defined]
        asyncsafe.use_local((module, "local"))
        module.local.number = 1
        assert not in_new_task(lambda: hasattr(module.local, "number"))

    def test_a_class(self) -> None:
        class Holder:
            local = threading.local()

        asyncsafe.use_local((Holder, "local"))
        Holder().local.number = 1
        assert Holder.local.number == 1
        assert not in_new_task(lambda: hasattr(Holder.local, "number"))

    def test_with_slots(self) -> None:
        class Holder:
            __slots__ = ("local",)

        holder = Holder()
        holder.local = threading.local()
        asyncsafe.use_local((holder, "local"))
        holder.local.number = 1
        assert not in_new_task(lambda: hasattr(holder.local, "number"))

    def test_swapping_twice_changes_nothing(self) -> None:
        registry = Registry(Counter(1))
        first = asyncsafe.use_local((registry, "local"), 1)
        registry.local.add()
        assert asyncsafe.use_local((registry, "local")) is first
        assert registry.local.count == 2

    def test_undo(self) -> None:
        original = threading.local()
        registry = Registry(original)
        swapped = asyncsafe.use_local((registry, "local"))
        registry.local.number = 1
        swapped.undo()
        assert registry.local is original
        assert not hasattr(original, "number")
        assert asyncsafe.use_local((registry, "local")) is not swapped

    def test_close_all_forgets_the_callers_state_alone(self) -> None:
        registry = Registry(Counter())
        swapped = asyncsafe.use_local((registry, "local"))
        registry.local.add()

        async def task() -> None:
            registry.local.added = 5
            swapped.close_all()
            assert registry.local.count == 0
            swapped.close_all()

        asyncio.run(task())
        assert registry.local.count == 1
        swapped.close_all()
        swapped.close_all()  # nothing is held
        assert registry.local.count == 0

    def test_the_middleware_takes_it(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None: ...

        swapped = asyncsafe.use_local((Registry(threading.local()), "local"))
        assert isinstance(swapped, SwappedLocal)
        ConnectionMiddleware(app, swapped)


class TestErrors:
    """Why it can't be done, and what to do."""

    @pytest.mark.parametrize(
        ("thing", "told"),
        [
            (None, "doesn't know builtins.NoneType: it takes a peewee Database"),
            (threading.local(), r"doesn't know _thread._local.*\(object, attribute\)"),
            ("django", "doesn't know"),
            ("peewee", "takes peewee's Database, not a str"),
            ("sqlalchemy", "takes SQLAlchemy's scoped_session, not a str"),
            ((), "takes a pair"),
            ((Registry(threading.local()),), "takes a pair"),
            ((Registry(threading.local()), 1), "takes a pair"),
            ((Registry(threading.local()), "local", 1), "takes a pair"),
            ((Registry(threading.local()), "other"), "Registry.other doesn't exist"),
            (
                (Registry({}), "local"),
                "Registry.local holds a builtins.dict, which is no threading.local",
            ),
            ((Registry(None), "local"), "holds a builtins.NoneType"),
        ],
        ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
    )
    def test_what_is_no_such_thing(self, thing: Any, told: str) -> None:
        with pytest.raises(asyncsafe.ConfigurationError, match=told):
            asyncsafe.use_local(thing)

    def test_libraries_that_are_not_imported(self, tmp_path: Path) -> None:
        python(
            "import asyncsafe\n"
            "for name in ('peewee', 'sqlalchemy'):\n"
            "    try:\n"
            "        asyncsafe.use_local(name)\n"
            "    except asyncsafe.ConfigurationError as error:\n"
            "        assert 'not a str' in str(error)\n"
            "    else:\n"
            "        raise AssertionError\n",
            tmp_path,
        )

    def test_arguments_without_an_attribute(self) -> None:
        with pytest.raises(asyncsafe.ConfigurationError, match=r"\(object, attribute\)"):
            asyncsafe.use_local("pony", 1)

    def test_arguments_that_are_missing(self) -> None:
        class Named(threading.local):
            def __init__(self, name: str) -> None: ...

        registry = Registry(original := Named("one"))
        with pytest.raises(
            asyncsafe.ConfigurationError,
            match=r"Registry.local takes arguments; pass them on.*name",
        ):
            asyncsafe.use_local((registry, "local"))
        assert registry.local is original

    def test_arguments_for_a_class_that_takes_none(self) -> None:
        class Plain(threading.local):
            pass

        with pytest.raises(asyncsafe.ConfigurationError, match="argument"):
            swapped(Plain(), 1)

    @pytest.mark.parametrize("special", ["__getattribute__", "__setattr__", "__delattr__"])
    def test_attribute_access_of_its_own(self, special: str) -> None:
        kind = type("Logged", (threading.local,), {special: lambda *args: None})
        registry = types.SimpleNamespace(local=threading.local.__new__(kind))
        with pytest.raises(
            asyncsafe.ConfigurationError, match=f"Logged has a {special} of its own.*leave it out"
        ):
            asyncsafe.use_local((registry, "local"))

    def test_values_that_are_held_already(self) -> None:
        original = threading.local()
        original.connection, original.depth = object(), 1
        registry = Registry(original)
        with pytest.raises(
            asyncsafe.ConfigurationError, match=r"holds connection, depth in this thread already"
        ):
            asyncsafe.use_local((registry, "local"))
        assert registry.local is original

    def test_values_in_place_of_those_that_init_sets(self) -> None:
        class Pool(threading.local):
            def __init__(self) -> None:
                self.connection: Any = None
                self.stack: list[Any] = []
                self.lock = threading.Lock()  # no two are equal

        original = Pool()
        assert swapped(original).connection is None
        original.connection = object()
        with pytest.raises(asyncsafe.ConfigurationError, match="holds connection in this thread"):
            swapped(original)

    @pytest.mark.parametrize("arguments", [(), (6,)])
    def test_arguments_that_are_others(self, arguments: tuple[int, ...]) -> None:
        with pytest.raises(
            asyncsafe.ConfigurationError, match=r"holds count, start .*the arguments that"
        ):
            swapped(Counter(5), *arguments)

    def test_values_of_another_thread_are_not_seen(self) -> None:
        original = threading.local()
        in_new_thread(lambda: setattr(original, "connection", object()))
        assert not hasattr(swapped(original), "connection")

    def test_an_attribute_that_cannot_be_set(self) -> None:
        @dataclasses.dataclass(frozen=True)
        class Frozen:
            local: Any

        with pytest.raises(asyncsafe.ConfigurationError, match=r"Frozen.local can't be set"):
            asyncsafe.use_local((Frozen(threading.local()), "local"))


class TestLocalBase:
    """A class to inherit from instead of threading.local."""

    def test_each_owner_has_a_state(self) -> None:
        class Pool(local_base()):  # type: ignore[misc]
            def __init__(self, name: str) -> None:
                self.name = name
                self.connections: list[Any] = []

        class Bigger(Pool):
            def __init__(self, name: str) -> None:
                super().__init__(name.upper())

        pool = Bigger("one")
        assert isinstance(pool, Pool)
        assert isinstance(pool, Bigger)
        pool.connections.append(1)
        assert in_new_task(lambda: (pool.name, pool.connections)) == ("ONE", [])
        assert pool.connections == [1]
        assert Bigger("two").connections == []

    def test_release_is_called_when_the_owner_ends(self) -> None:
        released: list[Any] = []

        class Pool(local_base(lambda state: released.append(state.name))):  # type: ignore[misc]
            name = "untouched"

        pool = Pool()

        async def task() -> None:
            pool.name = "the task's"

        asyncio.run(task())
        assert released == ["the task's"]
