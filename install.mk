.PHONY: install uninstall

install: ## programs to /opt/binance-funding, units to /etc/systemd/system, settings to /etc/binance-funding.env
	@sh packaging/install.sh install

uninstall: ## all of that away again, but for the settings
	@sh packaging/install.sh uninstall
