"""What people look at: charts as data, the page, the report, and the view inside a client."""
