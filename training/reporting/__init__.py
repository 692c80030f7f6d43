"""What records become: tables, figures, and a page that shows them."""
