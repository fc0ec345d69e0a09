"""A JupyterHub that needs nothing but itself: it is asked by its API alone."""

import os

from jupyterhub.proxy import Proxy


class NoProxy(Proxy):
    """Hubs have a proxy before the users' servers. This one has no users' servers."""

    should_start = False

    async def add_route(self, routespec, target, data): ...

    async def delete_route(self, routespec): ...

    async def get_all_routes(self):
        return {}


c = get_config()  # noqa: F821  (traitlets')
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{os.environ['HUB_PORT']}"
c.JupyterHub.bind_url = "http://127.0.0.1:1"  # the proxy's
c.JupyterHub.services = [{"name": "shop", "api_token": os.environ["HUB_TOKEN"]}]
c.JupyterHub.load_roles = [
    {"name": "shop", "services": ["shop"], "scopes": ["admin:users", "admin:groups", "list:users"]}
]
c.JupyterHub.log_level = 30  # warnings

if os.environ.get("HUB_NEWS"):
    # What a colleague adds next week: one more handler that asks the database on the loop.
    from jupyterhub import orm
    from jupyterhub.handlers import BaseHandler

    class News(BaseHandler):
        async def get(self):
            users = self.db.query(orm.User).filter(orm.User.admin.is_(False)).count()
            self.finish({"users": users})

    c.JupyterHub.extra_handlers = [(r"/news", News)]
