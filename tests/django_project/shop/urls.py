from __future__ import annotations

from django.urls import path

from . import views

urlpatterns = [
    path("count", views.count),
    path("blocking", views.blocking),
    path("asynchronous", views.asynchronous),
]
