"""Each view as people write it, and, below right/, as it should be."""

from __future__ import annotations

from django.urls import include, path

from . import right, views

urlpatterns = [
    path("orders/", views.list_orders),
    path("orders/page/", views.orders_page),
    path("orders/<int:pk>/pay/", views.pay_order),
    path("orders/<int:pk>/invoice/", views.upload_invoice),
    path("whoami/", views.whoami),
    path("report/", views.report),
    path(
        "right/",
        include(
            [
                path("orders/", right.list_orders),
                path("orders/page/", right.orders_page),
                path("orders/<int:pk>/pay/", right.pay_order),
                path("orders/<int:pk>/invoice/", right.upload_invoice),
                path("whoami/", right.whoami),
            ]
        ),
    ),
]
