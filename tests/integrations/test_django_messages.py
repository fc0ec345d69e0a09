"""Django: what the message says was asked for, and the fix that it names."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import exceptions

import asyncsafe

from ..django_project.running import Shop
from ..running import refused


def request(session: str = "db") -> Any:
    """With what the middlewares for sessions and authentication put there."""
    from django.contrib.auth.middleware import AuthenticationMiddleware
    from django.test import RequestFactory

    made = RequestFactory().get("/")
    engine = importlib.import_module(f"django.contrib.sessions.backends.{session}")
    made.session = engine.SessionStore("a" * 32)
    AuthenticationMiddleware(lambda request: None).process_request(made)
    return made


def lazily(shop: Shop) -> Callable[[], Any]:
    return lambda: shop.order.customer


def lookups(kind: str, *rows: tuple[str, Callable[[Shop], Any], str | None, str | None]) -> Any:
    return [pytest.param(*row[1:], id=f"{kind}: {row[0]}") for row in rows]


def deferred(shop: Shop) -> Callable[[], Any]:
    order = shop.Order.objects.defer("note").get(total=10)
    return lambda: order.note


def generic(shop: Shop) -> Callable[[], Any]:
    comment = shop.Comment.objects.get()
    return lambda: comment.subject


def other_side(shop: Shop) -> Callable[[], Any]:
    ada = shop.Customer.objects.get()
    return lambda: ada.profile


def to_field(shop: Shop) -> Callable[[], Any]:
    return lambda: shop.order.label


def one_to_one(shop: Shop) -> Callable[[], Any]:
    profile = shop.Profile.objects.get()
    return lambda: profile.customer


RELATIONS = lookups(
    "relation",
    (
        "foreign key",
        lazily,
        "Order.customer was loaded",
        'Order.objects.select_related("customer") beforehand, or '
        "await Customer.objects.aget(pk=order.customer_id)",
    ),
    (
        "foreign key to a field",
        to_field,
        "Order.label was loaded",
        'Order.objects.select_related("label") beforehand, or '
        "await Tag.objects.aget(name=order.label_id)",
    ),
    (
        "one to one",
        one_to_one,
        "Profile.customer was loaded",
        'Profile.objects.select_related("customer") beforehand, or '
        "await Customer.objects.aget(pk=profile.customer_id)",
    ),
    (
        "one to one, the other side",
        other_side,
        "Customer.profile was loaded",
        'Customer.objects.select_related("profile") beforehand, or '
        "await Profile.objects.aget(customer=customer)",
    ),
    (
        "generic foreign key",
        generic,
        "Comment.subject was loaded",
        'Comment.objects.prefetch_related("subject") beforehand',
    ),
    (
        "deferred field",
        deferred,
        "the deferred field Order.note was loaded",
        'await order.arefresh_from_db(fields=["note"]), or don\'t defer it',
    ),
)

EVALUATIONS = lookups(
    "evaluation",
    (
        "for",
        lambda shop: lambda: [o.pk for o in shop.Order.objects.all()],
        "QuerySet[Order] was iterated",
        "async for row in queryset: ...",
    ),
    (
        "list()",
        lambda shop: lambda: list(shop.Order.objects.all()),
        "QuerySet[Order] was iterated",
        "[row async for row in queryset]",
    ),
    (
        "a relation's",
        lambda shop: lambda: list(shop.ada.orders.all()),
        "QuerySet[Order] was iterated",
        "[row async for row in queryset]",
    ),
    (
        "iterator()",
        lambda shop: lambda: next(shop.Order.objects.iterator()),
        "QuerySet[Order] was iterated",
        "async for row in queryset.aiterator(): ...",
    ),
    (
        "bool()",
        lambda shop: lambda: bool(shop.Order.objects.all()),
        "QuerySet[Order] was evaluated by bool()",
        "if await queryset.aexists(): ...",
    ),
    (
        "len()",
        lambda shop: lambda: len(shop.Order.objects.all()),
        "QuerySet[Order] was evaluated by len()",
        "await queryset.acount()",
    ),
    (
        "repr()",
        lambda shop: lambda: repr(shop.Order.objects.all()),
        "QuerySet[Order] was evaluated by repr()",
        "print([row async for row in queryset[:20]])",
    ),
    (
        "in",
        lambda shop: lambda: shop.order in shop.Order.objects.all(),
        "QuerySet[Order] was evaluated by `in`",
        "await queryset.acontains(...)",
    ),
    (
        "[0]",
        lambda shop: lambda: shop.Order.objects.all()[0],
        "QuerySet[Order] was evaluated by [0]",
        "await queryset.afirst()",
    ),
    (
        "[1]",
        lambda shop: lambda: shop.Order.objects.all()[1],
        "QuerySet[Order] was evaluated by [1]",
        "[row async for row in queryset[1:2]][0]",
    ),
    (
        "[1:9:2]",
        lambda shop: lambda: shop.Order.objects.all()[1:9:2],
        "QuerySet[Order] was evaluated by [1:9:2]",
        "[row async for row in queryset[1:9]][::2]",
    ),
    (
        "raw()",
        lambda shop: lambda: list(shop.Order.objects.raw("select * from shop_order")),
        "RawQuerySet[Order] was evaluated",
        "await asyncsafe.database_sync_to_async(list)(queryset)",
    ),
)


def called(subject: str) -> str:
    return f"{subject}() was called"


METHODS = lookups(
    "method",
    (
        "manager's",
        lambda shop: lambda: shop.Order.objects.count(),
        called("Order.objects.count"),
        "await Order.objects.acount()",
    ),
    (
        "manager's with arguments",
        lambda shop: lambda: shop.Order.objects.get(pk=1),
        called("Order.objects.get"),
        "await Order.objects.aget(...)",
    ),
    (
        "queryset's",
        lambda shop: lambda: shop.Order.objects.filter(total=1).exists(),
        called("QuerySet[Order].exists"),
        "await queryset.aexists()",
    ),
    (
        "queryset's update",
        lambda shop: lambda: shop.Order.objects.filter(total=1).update(total=2),
        called("QuerySet[Order].update"),
        "await queryset.aupdate(...)",
    ),
    (
        "model's save",
        lambda shop: lambda: shop.order.save(),
        called("order.save"),
        "await order.asave(...)",
    ),
    (
        "model's delete",
        lambda shop: lambda: shop.order.delete(),
        called("order.delete"),
        "await order.adelete(...)",
    ),
    (
        "model's refresh_from_db",
        lambda shop: lambda: shop.order.refresh_from_db(),
        called("order.refresh_from_db"),
        "await order.arefresh_from_db(...)",
    ),
    (
        "model's, without twin",
        lambda shop: lambda: shop.order.full_clean(),
        called("order.full_clean"),
        None,
    ),
    (
        "reverse relation's",
        lambda shop: lambda: shop.ada.orders.create(total=1),
        called("customer.orders.create"),
        "await customer.orders.acreate(...)",
    ),
    (
        "reverse relation's queryset's",
        lambda shop: lambda: shop.ada.orders.count(),
        called("customer.orders.count"),
        "await customer.orders.acount()",
    ),
    (
        "many to many's",
        lambda shop: lambda: shop.order.tags.clear(),
        called("order.tags.clear"),
        "await order.tags.aclear()",
    ),
    (
        "many to many's, the other side",
        lambda shop: (lambda tag: lambda: tag.tagged.set([]))(shop.Tag.objects.get()),
        called("tag.tagged.set"),
        "await tag.tagged.aset(...)",
    ),
    (
        "many to many's, the other side without a name",
        lambda shop: lambda: shop.ada.order_set.clear(),
        called("customer.order_set.clear"),
        "await customer.order_set.aclear()",
    ),
    (
        "generic relation's",
        lambda shop: (
            shop.order.comments,
            lambda: shop.order.comments.create(),
        )[1],
        called("order.comments.create"),
        "await order.comments.acreate(...)",
    ),
    (
        "paginator's property",
        lambda shop: paginated(shop, lambda paginator: paginator.num_pages),
        "Paginator.num_pages was read",
        None,
    ),
    (
        "paginator's method",
        lambda shop: paginated(shop, lambda paginator: paginator.page(1)),
        called("Paginator.page"),
        None,
    ),
)


def paginated(shop: Shop, use: Callable[[Any], Any]) -> Callable[[], Any]:
    from django.core.paginator import Paginator

    paginator = Paginator(shop.Order.objects.order_by("pk"), 1)
    return lambda: use(paginator)


def shortcut(shop: Shop) -> Callable[[], Any]:
    from django.shortcuts import get_object_or_404

    return lambda: get_object_or_404(shop.Order, pk=1)


def atomic_block(shop: Shop) -> Callable[[], Any]:
    from django.db import transaction

    def write() -> None:
        with transaction.atomic():
            pass

    return write


def atomic_function(shop: Shop) -> Callable[[], Any]:
    from django.db import transaction

    decorated = transaction.atomic(lambda: None)
    return lambda: decorated()


def close_old(shop: Shop) -> Callable[[], Any]:
    from django.db import close_old_connections

    def make_and_close() -> None:
        with asyncsafe.allow("opens it"):
            shop.Order.objects.count()
        shop.connection.close_at = 0
        try:
            close_old_connections()
        finally:
            with asyncsafe.allow("the test's clean-up"):
                shop.connection.close()

    return make_and_close


def authentication(name: str, *args: Any, **kwargs: Any) -> Callable[[Shop], Callable[[], Any]]:
    def prepare(shop: Shop) -> Callable[[], Any]:
        from django.contrib import auth

        function = getattr(auth, name)
        return lambda: function(*(arg() for arg in args), **kwargs)

    return prepare


def of_session(use: Callable[[Any], Any], engine: str = "db") -> Callable[[Shop], Any]:
    def prepare(shop: Shop) -> Callable[[], Any]:
        session = request(engine).session
        return lambda: use(session)

    return prepare


def delete(session: Any) -> None:
    del session["cart"]


def set_item(session: Any) -> None:
    session["cart"] = 1


def rendered(name: str) -> Callable[[Shop], Callable[[], Any]]:
    def prepare(shop: Shop) -> Callable[[], Any]:
        from django.shortcuts import render
        from django.template.loader import get_template, render_to_string
        from django.template.response import TemplateResponse

        loaded = list(shop.Order.objects.all())
        template = get_template("orders.html")
        response = TemplateResponse(request(), "orders.html", {"orders": loaded})
        return {
            "render": lambda: render(
                request(), "orders.html", {"orders": shop.Order.objects.all()}
            ),
            "to_string": lambda: render_to_string("orders.html", {"orders": loaded}),
            "template": lambda: template.render({"orders": loaded}),
            "response": lambda: response.render(),
        }[name]

    return prepare


def serializer(use: str) -> Callable[[Shop], Callable[[], Any]]:
    def prepare(shop: Shop) -> Callable[[], Any]:
        rest_framework = pytest.importorskip("rest_framework.serializers")

        class OrderSerializer(rest_framework.ModelSerializer):  # type: ignore[misc,name-defined]
            customer = rest_framework.StringRelatedField()

            class Meta:
                model = shop.Order
                fields = ("customer", "total")

        order = shop.Order.objects.get(total=10)
        every = OrderSerializer(shop.Order.objects.all(), many=True)
        writing = OrderSerializer(data={"total": 30})
        writing.is_valid(raise_exception=True)
        return {
            "data": lambda: OrderSerializer(order).data,
            "many": lambda: every.data,
            "save": lambda: writing.save(customer=shop.ada),
        }[use]

    return prepare


SELECT_CUSTOMER = 'Order.objects.select_related("customer") beforehand, or '

OTHERS = lookups(
    "other",
    (
        "a shortcut",
        shortcut,
        called("django.shortcuts.get_object_or_404"),
        "await aget_object_or_404(...)",
    ),
    (
        "atomic()",
        atomic_block,
        "transaction.atomic() was entered",
        "await asyncsafe.database_sync_to_async(f)(...), where the function f has the whole atomic "
        "block: a transaction can't span await",
    ),
    (
        "@atomic",
        atomic_function,
        "transaction.atomic() was entered",
        "await asyncsafe.database_sync_to_async(f)(...), where the function f has the whole atomic "
        "block: a transaction can't span await",
    ),
    ("close_old_connections()", close_old, called("django.db.close_old_connections"), None),
    (
        "authenticate()",
        authentication("authenticate", username="ada", password="secret"),
        called("django.contrib.auth.authenticate"),
        "await aauthenticate(...)",
    ),
    (
        "get_user()",
        authentication("get_user", lambda: request()),
        called("django.contrib.auth.get_user"),
        "await aget_user(...)",
    ),
    (
        "logout()",
        authentication("logout", lambda: request()),
        called("django.contrib.auth.logout"),
        "await alogout(...)",
    ),
    (
        "request.user",
        lambda shop: (lambda made: lambda: made.user.is_authenticated)(request()),
        "request.user was loaded",
        "user = await request.auser()",
    ),
    (
        "bool(request.user)",
        lambda shop: (lambda made: lambda: bool(made.user))(request()),
        "request.user was loaded",
        "user = await request.auser()",
    ),
    (
        "session[...]",
        of_session(lambda session: session["cart"]),
        "request.session['cart'] was read",
        "await request.session.aget('cart')",
    ),
    (
        "session[...] =",
        of_session(set_item),
        "request.session['cart'] was set",
        "await request.session.aset('cart', value)",
    ),
    (
        "del session[...]",
        of_session(delete),
        "request.session['cart'] was deleted",
        "await request.session.apop('cart')",
    ),
    (
        "in session",
        of_session(lambda session: "cart" in session),
        "request.session['cart'] was looked up",
        "await request.session.ahas_key('cart')",
    ),
    (
        "session.get()",
        of_session(lambda session: session.get("cart")),
        called("request.session.get"),
        "await request.session.aget(...)",
    ),
    (
        "session.flush()",
        of_session(lambda session: session.flush()),
        called("request.session.flush"),
        "await request.session.aflush()",
    ),
    (
        "session.save()",
        of_session(lambda session: session.save()),
        called("request.session.save"),
        "await request.session.asave(...)",
    ),
    (
        "render()",
        rendered("render"),
        "QuerySet[Order] was evaluated by the template 'orders.html'",
        "await asyncsafe.database_sync_to_async(render)(...)",
    ),
    (
        "render_to_string()",
        rendered("to_string"),
        "Order.customer was loaded by the template 'orders.html'",
        SELECT_CUSTOMER + "await asyncsafe.database_sync_to_async(render_to_string)(...)",
    ),
    (
        "template.render()",
        rendered("template"),
        "Order.customer was loaded by the template 'orders.html'",
        SELECT_CUSTOMER + "await asyncsafe.database_sync_to_async(template.render)(...)",
    ),
    (
        "response.render()",
        rendered("response"),
        "Order.customer was loaded by the template 'orders.html'",
        SELECT_CUSTOMER + "await asyncsafe.database_sync_to_async(response.render)()",
    ),
    (
        "serializer.data",
        serializer("data"),
        "Order.customer was loaded by OrderSerializer.data",
        SELECT_CUSTOMER + "await asyncsafe.database_sync_to_async(lambda: serializer.data)()",
    ),
    (
        "serializer.data, many",
        serializer("many"),
        "QuerySet[Order] was evaluated by ListSerializer.data",
        "await asyncsafe.database_sync_to_async(lambda: serializer.data)()",
    ),
    (
        "serializer.save()",
        serializer("save"),
        called("OrderSerializer.save"),
        None,
    ),
    ("connection.cursor()", lambda shop: lambda: shop.connection.cursor(), None, None),
)


class TestMessage:
    @pytest.mark.parametrize(
        ("prepare", "subject", "fix"), [*RELATIONS, *EVALUATIONS, *METHODS, *OTHERS]
    )
    def test_it_names_what_was_asked_for_and_the_fix(
        self, shop: Shop, prepare: Callable[[Shop], Any], subject: str | None, fix: str | None
    ) -> None:
        call = prepare(shop)
        before = shop.connection.connection.total_changes
        violation = refused(call)
        assert (violation.subject, violation.hint) == (subject, fix)
        assert shop.connection.connection.total_changes == before
        if subject is not None:
            assert violation.call_site.filename == __file__
            message = violation.message()
            assert message.startswith(f"{subject} from a running event loop (asyncio).")
            # A thread is named once, with the user's own function where there is one.
            if fix is not None and fix.startswith("await asyncsafe.database_sync_to_async("):
                assert "  Run it in a thread:  await asyncsafe.database_sync_to_async(" in message
            elif fix is not None:
                assert f"  Write instead:       {fix}\n" in message
        # Off the loop the same call is made, or fails in its own way.
        try:
            call()
        except exceptions.SynchronousOnlyOperation:
            raise
        except Exception:  # such as DoesNotExist
            pass

    def test_a_signal_s_receiver_is_the_line_that_is_named(self, shop: Shop) -> None:
        from django.db.models.signals import post_init

        def note_it(sender: Any, **kwargs: Any) -> None:
            shop.Customer.objects.count()

        post_init.connect(note_it, sender=shop.Tag)
        try:
            violation = refused(lambda: shop.Tag(name="late"))
        finally:
            post_init.disconnect(note_it, sender=shop.Tag)
        assert violation.call_site.function.endswith("note_it")
        assert violation.subject == "Customer.objects.count() was called"

    def test_what_another_library_calls_has_no_fix_of_django_s(
        self, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed = tmp_path / "site-packages"
        installed.mkdir()
        (installed / "counting.py").write_text("def count(model): return model.objects.count()\n")
        monkeypatch.syspath_prepend(installed)
        counting = importlib.import_module("counting")
        violation = refused(lambda: counting.count(shop.Order))
        assert violation.subject == "Order.objects.count() was called"
        assert violation.hint is None
        assert violation.call_site.filename == __file__

    def test_the_user_s_own_manager_and_queryset(self, shop: Shop) -> None:
        from django.db import models

        class Paid(models.QuerySet):  # type: ignore[misc,type-arg]
            def paid(self) -> int:
                return int(self.filter(total__gt=0).count())

        manager = models.Manager.from_queryset(Paid)()
        manager.model, manager.name = shop.Order, "sales"
        violation = refused(lambda: manager.count())
        assert violation.subject == "Order.sales.count() was called"
        assert violation.hint == "await Order.sales.acount()"
        violation = refused(lambda: manager.paid())
        assert violation.call_site.function.endswith("Paid.paid")
        assert violation.subject == "Paid[Order].count() was called"

    def test_a_lazy_object_is_not_evaluated_for_the_message(self, shop: Shop) -> None:
        from django.utils.functional import SimpleLazyObject

        loads: list[str] = []

        def load() -> Any:
            loads.append("load")
            return shop.Order.objects.get(total=10)

        lazy = SimpleLazyObject(load)
        violation = refused(lambda: lazy.total)
        assert violation.subject == "Order.objects.get() was called"
        assert violation.call_site.function.endswith("load")
        assert loads == ["load"]

    def test_the_hints_name_what_django_has(self, shop: Shop) -> None:
        """Every key of the tables is code of Django's, and every method a fix names is there."""
        from django.contrib.sessions.backends.base import SessionBase
        from django.db.models import Model, QuerySet

        from asyncsafe.integrations.django import hints

        source = inspect.getsource(hints)
        owners = {"queryset": QuerySet, "request.session": SessionBase}
        named = re.findall(r"\b(queryset|request\.session)\.(a[a-z_]+)\(", source)
        named += [("request.session", method) for method, _ in hints._SESSION.values()]
        assert len(named) > 8
        for owner, method in named:
            assert hints._is_asynchronous(getattr(owners[owner], method)) or method == "aiterator"
        assert inspect.isasyncgenfunction(QuerySet.aiterator)
        assert inspect.iscoroutinefunction(Model.arefresh_from_db)
        assert callable(request().auser)

        keys = {*hints._READERS, *hints._RENDERERS}
        either = {"GenericForeignKey.__get__", "GenericForeignKeyDescriptor.__get__"}
        missing = keys - set(functions_of_django())
        assert missing in [either - {name} for name in either]

    def test_every_asynchronous_twin_is_found(self, shop: Shop) -> None:
        """Whatever method has a twin: what the hint names is a coroutine function of Django's."""
        from django.contrib.sessions.backends.base import SessionBase
        from django.core.cache.backends.base import BaseCache
        from django.db.models import Model, QuerySet

        from asyncsafe.integrations.django import hints

        for kind in (QuerySet, Model, SessionBase, BaseCache, type(shop.ada.orders)):
            # A manager's others are its queryset's.
            names = vars(kind) if hasattr(kind, "_queryset_class") else dir(kind)
            twins = [name for name in names if hasattr(kind, f"a{name}")]
            found = [name for name in twins if hints._with_prefix(kind, "it", name)]
            generators = {"iterator"}
            assert set(twins) - set(found) <= generators, kind
            assert len(found) >= 3, kind


def functions_of_django() -> Iterator[str]:
    """The qualified names of the functions in the modules that the tables are about."""
    modules = (
        *("django.db.models.manager", "django.db.models.query", "django.db.transaction"),
        *("django.db.models.query_utils", "django.db.models.fields.related_descriptors"),
        *("django.contrib.contenttypes.fields", "django.contrib.sessions.backends.base"),
        *("django.utils.functional", "django.template.backends.django", "django.template.loader"),
        *("django.template.response", "django.shortcuts"),
    )
    for name in modules:
        code = compile(inspect.getsource(importlib.import_module(name)), name, "exec")
        waiting = [code]
        while waiting:
            code = waiting.pop()
            yield code.co_qualname
            waiting += [const for const in code.co_consts if inspect.iscode(const)]
