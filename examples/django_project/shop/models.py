"""Customers, and their orders."""

from __future__ import annotations

from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=50)
    notes = models.TextField(default="")

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    total = models.IntegerField()
    paid = models.BooleanField(default=False)
    invoice = models.FileField(upload_to="invoices", blank=True)

    def __str__(self) -> str:
        return f"{self.customer_id}: {self.total}"
