"""The namespace of MySQL's own driver, `mysql.connector`."""
