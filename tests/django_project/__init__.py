"""A Django project that tests/integrations/test_django.py runs."""
