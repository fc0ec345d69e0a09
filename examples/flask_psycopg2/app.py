"""A Flask application with psycopg2, served over ASGI, that never has more than five connections."""

from __future__ import annotations

import functools
import os

import psycopg2
from flask import Flask
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.pool import QueuePool

from asyncsafe import ConnectionHandler
from asyncsafe.asgi import ASGIHandler

connect = functools.partial(
    psycopg2.connect, os.environ["DATABASE_URL"], application_name="flask_psycopg2"
)

# The cap is the pool's: a sixth request waits, up to `timeout` seconds, until one of five
# connections is given back.
pool = QueuePool(connect, pool_size=5, max_overflow=0, timeout=30)

# Whose a connection is, is the handler's: the first query of a request takes one from the pool,
# and the end of the request gives it back. The pool rolls back what was not committed.
connections = ConnectionHandler({"default": pool.connect})

#: The calling request's own connection.
connection = connections.proxy("default")

app = Flask(__name__)


@app.post("/orders/<customer>")
def place_order(customer: str) -> tuple[dict[str, int], int]:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (customer) VALUES (%s) RETURNING id", (customer,))
        (number,) = cursor.fetchone()
        # Slow enough for two hundred to meet.
        cursor.execute("SELECT pg_sleep(0.01)")
    connection.commit()
    return {"number": number}, 201


@app.errorhandler(NoConnectionError)
def no_connection(error: NoConnectionError) -> tuple[str, int]:
    """What a request gets for which no connection was given back in time."""
    return "too many requests at once", 503


# For an ASGI server: uvicorn app:asgi
asgi = ASGIHandler(app, connections)
